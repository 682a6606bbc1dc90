-- Writes learned fields of many entities, each compared and set by its version: an older version is ignored.
-- KEYS: the fence, the tombstones, the ledger, then the hashes. ARGV: the submission, the field of who writes, the attempt
-- and the write; then the milliseconds to live, 0 for ever; then, as MessagePack, the fields, that of the version first, and
-- the values, those of one hash behind those of the other: texts, as a number costs Redis more than all else of a hash.
local ttl, fields, values = tonumber(ARGV[5]), cmsgpack.unpack(ARGV[6]), cmsgpack.unpack(ARGV[7])
local words, width = {}, #fields
if #values ~= (#KEYS - 3) * width then return redis.error_reply('values are missing') end
for n = 1, width do words[2 * n - 1] = fields[n] end
for k = 4, #KEYS do
  local before = (k - 4) * width
  local version = values[before + 1]
  local known, last = redis.call('HGET', KEYS[k], fields[1]), buried(KEYS[k])
  if (not known or known <= version) and (not last or last ~= '*' and tonumber(last) < seq_of(version)) then
    for n = 1, width do words[2 * n] = values[before + n] end
    redis.call('HSET', KEYS[k], unpack(words, 1, 2 * width))
    if ttl > 0 then redis.call('PEXPIRE', KEYS[k], ttl) end
  end
end
