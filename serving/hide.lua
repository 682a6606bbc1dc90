-- Removes users who are about to be deleted, and lets nothing of them be written until the job has done so.
-- KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the submission that writes; then for each hash the
-- user's id and the number of the request. A tombstone of this request, or of a later one, stays as it is.
for k = 3, #KEYS do
  local id, number = ARGV[2 * k - 4], ARGV[2 * k - 3]
  local stone = redis.call('HGET', KEYS[2], id)
  if not stone or tonumber(string.match(stone, '^%d+')) < tonumber(number) then
    redis.call('HSET', KEYS[2], id, number .. ' *')
    redis.call('DEL', KEYS[k])
  end
end
return #KEYS - 2
