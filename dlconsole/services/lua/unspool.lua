-- Delete a spool whose errors are safe on disk.
--
-- KEYS[1]  HASH  drainer  'run', 'seen', 'open'
-- KEYS[2]  LIST  spool
-- ARGV     run, batch
-- Returns  {code, dropped}: code 'OK', or 'FENCED' or 'UNKNOWN' as `spool` (nothing changed); dropped is
--          how many it held
--
-- Safe to repeat: the second time there is no spool.

local wrong = expect(KEYS[1], 'hash') or expect(KEYS[2], 'list')
if wrong then return wrong end
local run = redis.call('HGET', KEYS[1], 'run')
if run ~= ARGV[1] then return {run and 'FENCED' or 'UNKNOWN', 0} end

local dropped = redis.call('LLEN', KEYS[2])
redis.call('DEL', KEYS[2])
if redis.call('HGET', KEYS[1], 'open') == ARGV[2] then redis.call('HDEL', KEYS[1], 'open') end
redis.call('HSET', KEYS[1], 'seen', string.format('%.0f', clock()))
return {'OK', dropped}
