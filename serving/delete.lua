-- Removes users, and leaves tombstones. KEYS: the fence, the tombstones, then the hashes. ARGV[1]: the submission that
-- writes; then for each hash the user's id, the number of the request, the last seq that is deleted, and the
-- tombstone. Where Redis knew of the request, a hash holds only what came after it; so it does where its version is
-- newer: Redis has lost the tombstone, and the user came back.
for k = 3, #KEYS do
  local at = 4 * k - 10
  local id, number, seq = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local stone = redis.call('HGET', KEYS[2], id)
  local known = stone and tonumber(string.match(stone, '^%d+')) or 0
  if known <= number then
    redis.call('HSET', KEYS[2], id, ARGV[at + 3])
    local version = redis.call('HGET', KEYS[k], 'version')
    if known < number and (not version or tonumber(string.match(version, '%d+$')) <= seq) then
      redis.call('DEL', KEYS[k])
    end
  end
end
return #KEYS - 2
