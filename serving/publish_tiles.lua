-- Writes closed windows of many entities and prunes old ones: not at each write, which would look at every field
-- of the hash, but whenever an eighth of the shortest time to keep has passed since the last look. A tile is a
-- whole value, so writing it again changes nothing. What a window may hold of a user from before the user was deleted
-- is left out. KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the submission that writes; ARGV[2]:
-- milliseconds to live, 0 for ever; ARGV[3]: the part that all windows are of; ARGV[4], as MessagePack, of each hash: the
-- end of its session and the session, both empty where there is none, then of each tile its span, start, field and value;
-- ARGV[5]: number of spans, then name and milliseconds to keep of each.
local ttl, part, entities, spans = tonumber(ARGV[2]), tonumber(ARGV[3]), cmsgpack.unpack(ARGV[4]), tonumber(ARGV[5])
local keep, shortest = {}, math.huge
for at = 6, 5 + 2 * spans, 2 do
  keep[ARGV[at]] = tonumber(ARGV[at + 1])
  shortest = math.min(shortest, keep[ARGV[at]])
end
local function is_new(start, of, bound)
  return of and (part > of or part == of and start > bound)
end
-- A call costs more than what it does: as few as can be, of as many words as Lua's stack can surely hold.
local most = 4000
local function in_parts(command, key, words)
  for first = 1, #words, most do
    redis.call(command, key, unpack(words, first, math.min(first + most - 1, #words)))
  end
end
for k = 3, #KEYS do
  local key, entity, newest = KEYS[k], entities[k - 2], 0
  local last, of, bound = buried(key)
  local known = redis.call('HMGET', key, 'pruned', 'session_end')
  local pruned, ended_before, words = tonumber(known[1] or 0), tonumber(known[2] or 0), {}
  for at = 3, #entity, 4 do
    local start, stays = tonumber(entity[at + 1]), keep[entity[at]]
    -- What is too old was pruned: a replay writes it again.
    if (not last or is_new(start, of, bound)) and not (stays and start < pruned - stays) then
      if start > newest then newest = start end
      words[#words + 1] = entity[at + 2]
      words[#words + 1] = entity[at + 3]
    end
  end
  local is_due = #words > 0 and newest - pruned >= shortest / 8
  if is_due then
    words[#words + 1] = 'pruned'
    words[#words + 1] = newest
  end
  local ended, session = entity[1], entity[2]
  if session ~= '' and ended_before <= tonumber(ended)
      and (not last or is_new(tonumber(string.match(session, '"start":(%d+)')), of, bound)) then
    for _, word in ipairs({'session_end', ended, 'session', session}) do words[#words + 1] = word end
  end
  in_parts('HSET', key, words)
  if is_due then
    local old = {}
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local span, start = string.match(field, '^t:(%w+):(%d+)')
      if span and keep[span] and tonumber(start) < newest - keep[span] then old[#old + 1] = field end
    end
    in_parts('HDEL', key, old)
  end
  if ttl > 0 then redis.call('PEXPIRE', key, ttl) end
end
return #KEYS - 2
