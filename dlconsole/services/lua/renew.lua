-- A heartbeat: renew the lease and publish the session's statistics.
--
-- KEYS[1]  ZSET  lease    session id -> deadline, ms
-- KEYS[2]  HASH  workers  session id -> statistics, JSON
-- ARGV     sid, ttl_ms, statistics
-- Returns  {code, now_ms}: code 'OK', or 'FENCED' when the lease is missing or past (nothing changed)
--
-- Safe to repeat: it overwrites.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not deadline or tonumber(deadline) <= now then return {'FENCED', now} end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return {'OK', now}
