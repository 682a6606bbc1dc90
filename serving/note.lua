-- Runs one command. KEYS[1]: the fence. ARGV[1]: the submission; then the words of the command.
return redis.call(unpack(ARGV, 2))
