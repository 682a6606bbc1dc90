-- Before a script that writes users. KEYS[2]: the tombstones of deleted users. buried(key) is nothing for a key whose
-- user has none, else the last version that is deleted, '*' for all, and the part and the bound of the windows that are,
-- without them all.
local any_deleted = redis.call('EXISTS', KEYS[2]) == 1
local users = string.sub(KEYS[2], 1, -#'deleted' - 1) .. 'user:'
local function buried(key)
  if not any_deleted or string.sub(key, 1, #users) ~= users then return nil end
  local stone = redis.call('HGET', KEYS[2], string.sub(key, #users + 1))
  if not stone then return nil end
  local version, part, bound = string.match(stone, '^%d+ (%S+) ?(%d*) ?(%d*)$')
  return version, tonumber(part), tonumber(bound)
end
