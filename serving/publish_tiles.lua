-- Writes closed windows of many entities and prunes old ones: not at each write, which would look at every field
-- of the hash, but whenever an eighth of the shortest time to keep has passed since the last look. A tile is a
-- whole value, so writing it again changes nothing. What a window may hold of a user from before the user was deleted
-- is left out. KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the submission that writes; ARGV[2]:
-- milliseconds to live, 0 for ever; ARGV[3]: the part that all windows are of; ARGV[4]: number of spans, then name and
-- milliseconds to keep of each; then for each hash: number of tiles, then for each tile its span, start, field and value; then the end of its
-- session and the session, both empty where there is none.
local ttl, part, spans, at = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), 5
local keep, shortest = {}, math.huge
for _ = 1, spans do
  keep[ARGV[at]] = tonumber(ARGV[at + 1])
  shortest = math.min(shortest, keep[ARGV[at]])
  at = at + 2
end
local function is_new(start, of, bound)
  return of and (part > of or part == of and start > bound)
end
for k = 3, #KEYS do
  local key, count, newest, written = KEYS[k], tonumber(ARGV[at]), 0, 0
  local last, of, bound = buried(key)
  local pruned = count > 0 and tonumber(redis.call('HGET', key, 'pruned') or 0)
  at = at + 1
  for _ = 1, count do
    local start, stays = tonumber(ARGV[at + 1]), keep[ARGV[at]]
    -- What is too old was pruned: a replay writes it again.
    if (not last or is_new(start, of, bound)) and not (stays and start < pruned - stays) then
      if start > newest then newest = start end
      redis.call('HSET', key, ARGV[at + 2], ARGV[at + 3])
      written = written + 1
    end
    at = at + 4
  end
  local ended, session = ARGV[at], ARGV[at + 1]
  at = at + 2
  if session ~= '' and (not last or is_new(tonumber(string.match(session, '"start":(%d+)')), of, bound)) then
    local known = redis.call('HGET', key, 'session_end')
    if not known or tonumber(known) <= tonumber(ended) then
      redis.call('HSET', key, 'session_end', ended, 'session', session)
    end
  end
  if written > 0 then
    if newest - pruned >= shortest / 8 then
      local old = {}
      for _, field in ipairs(redis.call('HKEYS', key)) do
        local span, start = string.match(field, '^t:(%w+):(%d+)')
        if span and keep[span] and tonumber(start) < newest - keep[span] then old[#old + 1] = field end
      end
      if #old > 0 then redis.call('HDEL', key, unpack(old)) end
      redis.call('HSET', key, 'pruned', newest)
    end
  end
  if ttl > 0 then redis.call('PEXPIRE', key, ttl) end
end
return #KEYS - 2
