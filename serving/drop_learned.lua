-- Takes learned fields out of many hashes, each unless it is newer than what is dropped, and items out of the sorted set of
-- their shard. Other fields stay.
-- KEYS: the fence, the tombstones, the ledger, the sorted set, then the hashes. ARGV: the submission, the field of the
-- attempt and the attempt; the version up to which they are dropped; the number of fields; then the fields, that of the
-- version first; then, of items, the id of each hash.
local version, last = ARGV[4], 5 + tonumber(ARGV[5])
for k = 5, #KEYS do
  local known = redis.call('HGET', KEYS[k], ARGV[6])
  if not known or known <= version then
    redis.call('HDEL', KEYS[k], unpack(ARGV, 6, last))
    local item = ARGV[last + k - 4]
    if item then redis.call('ZREM', KEYS[4], item) end
  end
end
