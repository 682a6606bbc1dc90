-- Each script of a job begins with this. KEYS[1]: the fence; ARGV[1]: the submission that writes. A submission
-- below the fence may not; where Redis has lost the fence, the next write puts it up again.
local fence, submission = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
if fence > submission then return redis.error_reply('FENCED ' .. string.format('%.0f', fence)) end
if fence < submission then redis.call('SET', KEYS[1], ARGV[1]) end
