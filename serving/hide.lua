-- Removes users who are about to be deleted, and lets nothing of them be written until the job has done so; but
-- windows are judged as soon as their bound is known. KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the
-- submission that writes; then for each hash the user's id, the number of the request and the tombstone. One of a later
-- request stays as it is, and of this request one that says more.
for k = 3, #KEYS do
  local at = 3 * k - 7
  local id, number, stone = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local known = redis.call('HGET', KEYS[2], id)
  if not known or tonumber(string.match(known, '^%d+')) < tonumber(number) then
    redis.call('HSET', KEYS[2], id, stone)
    redis.call('DEL', KEYS[k])
  elseif known == number .. ' *' then
    redis.call('HSET', KEYS[2], id, stone)
  end
end
return #KEYS - 2
