-- A heartbeat: renew the lease, publish the session's statistics and, with some, its sites.
--
-- KEYS[1]  ZSET    lease    session id -> deadline, ms
-- KEYS[2]  HASH    workers  session id -> statistics, JSON
-- KEYS[3]  STRING  sites    the session's report of sites, JSON; outlives its session by a while
-- ARGV     sid, ttl_ms, statistics, report of sites ('' where this heartbeat brings none)
-- Returns  {code, now_ms}: code 'OK', or 'FENCED' when the lease is missing or past (nothing changed)
--
-- Safe to repeat: it overwrites.

local now = clock()
allow_without_memory(KEYS[1])
if not is_live(KEYS[1], ARGV[1], now) then return {'FENCED', now} end
renew(KEYS[1], ARGV[1], now, ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
if ARGV[4] ~= '' then redis.call('SET', KEYS[3], ARGV[4], 'PX', string.format('%.0f', 2 * ARGV[2])) end
return {'OK', now}
