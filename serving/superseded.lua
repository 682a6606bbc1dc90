-- Scripts that write for a shard go on with this. KEYS[3]: the ledger; ARGV[2]: the field with the newest attempt at the
-- shard; ARGV[3]: the attempt that writes. An earlier attempt may not; where Redis has lost the field, the next write puts
-- it up again.
local newest, attempt = tonumber(redis.call('HGET', KEYS[3], ARGV[2]) or 0), tonumber(ARGV[3])
if newest > attempt then return redis.error_reply('SUPERSEDED ' .. string.format('%.0f', newest)) end
if newest < attempt then redis.call('HSET', KEYS[3], ARGV[2], ARGV[3]) end
