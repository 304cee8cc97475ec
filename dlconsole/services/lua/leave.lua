-- Forget a drainer that ends with nothing taken.
--
-- KEYS[1]  SET   drainers
-- KEYS[2]  HASH  drainer
-- ARGV     drainer id, run
-- Returns  1 where it was forgotten, 0 where it still has a spool or another process goes on as it
--
-- Safe to repeat: the second time there is nothing to forget.

local wrong = expect(KEYS[1], 'set') or expect(KEYS[2], 'hash')
if wrong then return wrong end
if redis.call('HGET', KEYS[2], 'run') ~= ARGV[2] or redis.call('HEXISTS', KEYS[2], 'open') == 1 then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[1], ARGV[1])
return 1
