-- Writes learned fields of many entities, each compared and set by its version: an older version is ignored.
-- KEYS: the fence, then the hashes. ARGV[1]: the submission that writes; ARGV[2]: milliseconds to live, 0 for ever; then
-- for each hash: name of the version field, version, number of pairs, then field and value of each pair.
local ttl, at, written = tonumber(ARGV[2]), 3, 0
for k = 2, #KEYS do
  local name, version, pairs_n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local first = at + 3
  at = first + 2 * pairs_n
  local known = redis.call('HGET', KEYS[k], name)
  if not known or known <= version then
    redis.call('HSET', KEYS[k], name, version, unpack(ARGV, first, at - 1))
    if ttl > 0 then redis.call('PEXPIRE', KEYS[k], ttl) end
    written = written + 1
  end
end
return written
