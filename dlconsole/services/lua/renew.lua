-- A heartbeat: renew the lease and publish the session's statistics.
--
-- KEYS[1]  ZSET  lease    session id -> deadline, ms
-- KEYS[2]  HASH  workers  session id -> statistics, JSON
-- ARGV     sid, ttl_ms, statistics
-- Returns  {code, now_ms}: code 'OK', or 'FENCED' when the lease is missing or past (nothing changed)
--
-- Safe to repeat: it overwrites.

local now = clock()
allow_without_memory(KEYS[1])
if not is_live(KEYS[1], ARGV[1], now) then return {'FENCED', now} end
renew(KEYS[1], ARGV[1], now, ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return {'OK', now}
