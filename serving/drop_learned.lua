-- Takes learned fields out of many hashes, each unless it is newer than what is dropped, and items out of the sorted set of
-- their shard. Other fields stay.
-- KEYS: the fence, the tombstones, the ledger, the sorted set, then the hashes. ARGV: the submission, the field of who
-- writes, the attempt and the write; the version up to which they are dropped; the number of fields; then the fields, that
-- of the version first; then, of items, the id of each hash.
local version, last = ARGV[5], 6 + tonumber(ARGV[6])
for k = 5, #KEYS do
  local known = redis.call('HGET', KEYS[k], ARGV[7])
  if not known or known <= version then
    redis.call('HDEL', KEYS[k], unpack(ARGV, 7, last))
    local item = ARGV[last + k - 4]
    if item then redis.call('ZREM', KEYS[4], item) end
  end
end
