-- Writes closed windows of many entities and prunes old ones: not at each write, but whenever an eighth of the shortest
-- time to keep has passed since the last time. What has become old since then is known by its start; every field of
-- the hash is looked at only where that would be more, or where other times to keep were in force. A tile is a
-- whole value, so writing it again changes nothing. What a window may hold of a user from before the user was deleted
-- is left out. KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the submission that writes; ARGV[2]:
-- milliseconds to live, 0 for ever; ARGV[3]: the part that all windows are of; ARGV[4], as MessagePack, of each hash: the
-- end of its session and the session, both empty where there is none, then of each tile its span, start, field and value;
-- ARGV[5]: what stands for the times to keep; ARGV[6]: number of spans, then of each its name, its length, and how long
-- it stays, in milliseconds.
local ttl, part, entities, times = tonumber(ARGV[2]), tonumber(ARGV[3]), cmsgpack.unpack(ARGV[4]), ARGV[5]
local keep, lengths, shortest = {}, {}, math.huge
for at = 7, 6 + 3 * tonumber(ARGV[6]), 3 do
  local span = ARGV[at]
  lengths[span], keep[span] = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  shortest = math.min(shortest, keep[span])
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
-- The fields that became old from one time to another; nothing where there may be too many of them.
local few = 60
local function old_since(before, now)
  local old = {}
  for span, stays in pairs(keep) do
    local length = lengths[span]
    local first = math.ceil((before - stays) / length) * length
    if #old + (now - stays - first) / length * (part + 1) > few then return nil end
    for start = first, now - stays - 1, length do
      local field = 't:' .. span .. ':' .. string.format('%.0f', start)
      old[#old + 1] = field
      for p = 1, part do old[#old + 1] = field .. ':' .. p end
    end
  end
  return old
end
local function all_old(key, now)
  local old = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local span, start = string.match(field, '^t:(%w+):(%d+)')
    if span and keep[span] and tonumber(start) < now - keep[span] then old[#old + 1] = field end
  end
  return old
end
for k = 3, #KEYS do
  local key, entity, newest = KEYS[k], entities[k - 2], 0
  local last, of, bound = buried(key)
  local ended, session = entity[1], entity[2]
  local known
  if session == '' then
    known = redis.call('HMGET', key, 'pruned')
  else
    known = redis.call('HMGET', key, 'pruned', 'session_end')
  end
  local pruned, pruned_by = string.match(known[1] or '', '^(%d+) ?(%x*)$')
  local ended_before, words = tonumber(known[2] or 0), {}
  pruned = tonumber(pruned or 0)
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
    words[#words + 1] = string.format('%.0f %s', newest, times)
  end
  if session ~= '' and ended_before <= tonumber(ended)
      and (not last or is_new(tonumber(string.match(session, '"start":(%d+)')), of, bound)) then
    for _, word in ipairs({'session_end', ended, 'session', session}) do words[#words + 1] = word end
  end
  in_parts('HSET', key, words)
  if is_due then
    in_parts('HDEL', key, pruned_by == times and old_since(pruned, newest) or all_old(key, newest))
  end
  if ttl > 0 then redis.call('PEXPIRE', key, ttl) end
end
return #KEYS - 2
