-- Scripts that write for a shard go on with this. KEYS[3]: the ledger; ARGV[2]: the field that says who writes the shard,
-- its newest attempt and how many writes of that are done; ARGV[3], ARGV[4]: the attempt that writes, and which of its
-- writes this is, from 1; it may be sent again. An earlier attempt may not write; nor may one whose last write is not
-- there, as Redis was wiped or put back since.
local newest, done = string.match(redis.call('HGET', KEYS[3], ARGV[2]) or '0 0', '(%d+) (%d+)')
newest, done = tonumber(newest), tonumber(done)
local attempt, write = tonumber(ARGV[3]), tonumber(ARGV[4])
if newest > attempt then return redis.error_reply('SUPERSEDED ' .. string.format('%.0f', newest)) end
if newest < attempt or done < write - 1 or done > write then return redis.error_reply('LOST a write') end
