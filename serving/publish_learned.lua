-- Writes learned fields of many entities, each compared and set by its version: an older version is ignored.
-- KEYS: the fence, the tombstones, the ledger, then the hashes. ARGV: the submission, the field of who writes, the attempt
-- and the write; then the milliseconds to live, 0 for ever; then for each hash: name of the version field, version, number
-- of pairs, then field and value of each pair.
local ttl, at = tonumber(ARGV[5]), 6
for k = 4, #KEYS do
  local name, version, pairs_n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local first = at + 3
  at = first + 2 * pairs_n
  local known, last = redis.call('HGET', KEYS[k], name), buried(KEYS[k])
  if (not known or known <= version) and (not last or last ~= '*' and tonumber(last) < seq_of(version)) then
    redis.call('HSET', KEYS[k], name, version, unpack(ARGV, first, at - 1))
    if ttl > 0 then redis.call('PEXPIRE', KEYS[k], ttl) end
  end
end
