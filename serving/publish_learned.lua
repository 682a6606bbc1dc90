-- Writes learned fields of many entities, each compared and set by its version: an older version is ignored.
-- Returns the version that the last one had before.
-- KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the submission that writes; ARGV[2]: milliseconds to live, 0 for ever; then
-- for each hash: name of the version field, version, number of pairs, then field and value of each pair.
local ttl, at, known = tonumber(ARGV[2]), 3, false
for k = 3, #KEYS do
  local name, version, pairs_n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local first = at + 3
  at = first + 2 * pairs_n
  known = redis.call('HGET', KEYS[k], name)
  local last = buried(KEYS[k])
  if (not known or known <= version) and (not last or last ~= '*' and last < version) then
    redis.call('HSET', KEYS[k], name, version, unpack(ARGV, first, at - 1))
    if ttl > 0 then redis.call('PEXPIRE', KEYS[k], ttl) end
  end
end
return known
