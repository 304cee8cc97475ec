-- Begin a session: give it a lease, and register it so that its tasks are found even without one.
--
-- KEYS[1]  ZSET  lease      session id -> deadline, ms
-- KEYS[2]  SET   sessions   every session that may own an in-flight hash
-- ARGV     sid, ttl_ms
-- Returns  now_ms, the server's clock
--
-- Safe to repeat: the same id gets the same two entries, with a later deadline.

local now = clock()
allow_without_memory(KEYS[1])
redis.call('SADD', KEYS[2], ARGV[1])
renew(KEYS[1], ARGV[1], now, ARGV[2])
return now
