-- Runs one command of a shard. KEYS: the fence, the tombstones, the ledger. ARGV: the submission, the field of who writes, the
-- attempt and the write; then the words of the command.
return redis.call(unpack(ARGV, 5))
