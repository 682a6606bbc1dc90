-- Before a script that writes users. KEYS[2]: the tombstones of deleted users. buried(key) is nothing for a key whose
-- user has none, else the last seq that is deleted, '*' for all, and the part and the bound of the windows that are,
-- without them all.
local stones = {}
if redis.call('EXISTS', KEYS[2]) == 1 then
  local users = string.sub(KEYS[2], 1, -#'deleted' - 1) .. 'user:'
  local ids, keys = {}, {}
  for k = 3, #KEYS do
    if string.sub(KEYS[k], 1, #users) == users then
      ids[#ids + 1], keys[#keys + 1] = string.sub(KEYS[k], #users + 1), KEYS[k]
    end
  end
  if #ids > 0 then
    for n, stone in ipairs(redis.call('HMGET', KEYS[2], unpack(ids))) do stones[keys[n]] = stone or nil end
  end
end
local function buried(key)
  local stone = stones[key]
  if not stone then return nil end
  local seq, part, bound = string.match(stone, '^%d+ (%S+) ?(%d*) ?(%d*)$')
  return seq, tonumber(part), tonumber(bound)
end
-- The seq in a version.
local function seq_of(version)
  return tonumber(string.match(version, '%d+$'))
end
