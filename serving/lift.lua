-- Lifts tombstones that hold back nothing any more. KEYS: the fence, the tombstones. ARGV[1]: the submission that
-- writes; then pairs of a user's id and the tombstone, which stays if it is another by now.
for at = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[at]) == ARGV[at + 1] then redis.call('HDEL', KEYS[2], ARGV[at]) end
end
return (#ARGV - 1) / 2
