-- Runs commands. KEYS[1]: the fence. ARGV[1]: the submission; then for each command the number of its words, and the
-- words.
local at = 2
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
