-- Pause the fleet: from here on every claim is answered with PAUSED.
--
-- KEYS[1]  HASH  control   'paused', 'by', 'why', 'at'
-- ARGV     by, why
-- Returns  {was paused before (0 or 1), now_ms}
--
-- Safe to repeat: it overwrites; who pauses a paused fleet is the one who is named.

local was = redis.call('HGET', KEYS[1], 'paused') == '1' and 1 or 0
local now = clock()
redis.call('HDEL', KEYS[1], '')  -- from here on also without memory: see allow_without_memory
redis.call('HSET', KEYS[1], 'paused', '1', 'by', ARGV[1], 'why', ARGV[2], 'at', string.format('%.0f', now))
return {was, now}
