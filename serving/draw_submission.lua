-- Draws the number of a submission, above all before it, and fences off whoever has a lower one.
-- KEYS[1]: the fence. ARGV[1]: the clock of who submits, in milliseconds.
local mine, known = tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[1]) or 0)
if mine <= known then mine = known + 1 end
redis.call('SET', KEYS[1], string.format('%.0f', mine))
return mine
