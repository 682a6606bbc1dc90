-- Writes learned fields of many entities, each compared and set by its version: an older version is ignored.
-- KEYS: the fence, the tombstones, the ledger, then the hashes. ARGV: the submission, the field of who writes, the attempt
-- and the write; then the milliseconds to live, 0 for ever; then, as MessagePack, of each hash what HSET takes: the version
-- field and the version first.
local ttl, entities = tonumber(ARGV[5]), cmsgpack.unpack(ARGV[6])
for k = 4, #KEYS do
  local words = entities[k - 3]
  local version = words[2]
  local known, last = redis.call('HGET', KEYS[k], words[1]), buried(KEYS[k])
  if (not known or known <= version) and (not last or last ~= '*' and tonumber(last) < seq_of(version)) then
    redis.call('HSET', KEYS[k], unpack(words))
    if ttl > 0 then redis.call('PEXPIRE', KEYS[k], ttl) end
  end
end
