-- Begins an attempt at a shard, above all before it. Returns its number, the version of the shard's header, how far the
-- shard was when the header was written, and how far it may have been.
-- KEYS: the fence, the tombstones, the ledger, the hash of the shard's header. ARGV: the submission; the fields of who
-- writes and of how far it may have been; the epoch, as versions begin with it; then the last attempt of who takes over.
local header = redis.call('HMGET', KEYS[4], 'version', 'reached')
local known = header[1] and string.sub(header[1], 1, #ARGV[4]) == ARGV[4] and header[1]
local of_header = known and tonumber(string.match(known, '^%d+%.(%d+)%.')) or 0
local newest = tonumber(string.match(redis.call('HGET', KEYS[3], ARGV[2]) or '0', '%d+'))
local attempt = math.max(newest, of_header, tonumber(ARGV[5])) + 1
redis.call('HSET', KEYS[3], ARGV[2], string.format('%.0f 0', attempt))
return {attempt, known, known and header[2], known and redis.call('HGET', KEYS[3], ARGV[3])}
