-- Takes learned fields out of many hashes, and items out of the sorted set of their shard, each unless it is newer than
-- what is dropped: a job that replays can't take away what a later event brought back. Other fields stay.
-- KEYS: the fence, the sorted set, then the hashes. ARGV[1]: the submission that writes; ARGV[2]: the version up to which
-- they are dropped; ARGV[3]: its seq; ARGV[4]: number of fields; then the fields, that of the version first; then, of
-- items, the id of each hash.
local version, seq, last = ARGV[2], tonumber(ARGV[3]), 4 + tonumber(ARGV[4])
for k = 3, #KEYS do
  local known = redis.call('HGET', KEYS[k], ARGV[5])
  if known and known <= version then redis.call('HDEL', KEYS[k], unpack(ARGV, 5, last)) end
  local item = ARGV[last + k - 2]
  local score = item and redis.call('ZSCORE', KEYS[2], item)
  if score and tonumber(score) <= seq then redis.call('ZREM', KEYS[2], item) end
end
