-- Writes learned fields of many entities, each compared and set by its version: an older version is ignored.
-- Returns the version that the last one had before.
-- KEYS: the fence, then the hashes. ARGV[1]: the submission that writes; ARGV[2]: milliseconds to live, 0 for ever; ARGV[3]:
-- the version that the last hash must have at least, or it is left as it is, empty where nothing is asked of it (a header
-- stands for rows that were written before, and must not come back where they are lost); then for each hash: name of the version field, version, number of pairs, then field and value of each pair.
local ttl, after, at, known = tonumber(ARGV[2]), ARGV[3], 4, false
for k = 2, #KEYS do
  local name, version, pairs_n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local first = at + 3
  at = first + 2 * pairs_n
  known = redis.call('HGET', KEYS[k], name)
  local lost = k == #KEYS and after ~= '' and (not known or known < after)
  if not lost and (not known or known <= version) then
    redis.call('HSET', KEYS[k], name, version, unpack(ARGV, first, at - 1))
    if ttl > 0 then redis.call('PEXPIRE', KEYS[k], ttl) end
  end
end
return known
