-- End a session: what it still has in flight goes back to the tail in its order; drop its lease.
--
-- KEYS[1]  LIST    queue
-- KEYS[2]  HASH    in flight  '<batch>:<i>' -> raw item
-- KEYS[3]  ZSET    lease
-- KEYS[4]  SET     sessions
-- KEYS[5]  HASH    workers
-- KEYS[6]  STRING  sites
-- ARGV     sid
-- Returns  how many items went back
--
-- Safe to repeat: the second time there is no in-flight hash. The type is checked before anything
-- moves, and the hash is deleted before the pushes, so it runs even when Redis is out of memory.

local wrong = expect(KEYS[1], 'list')
if wrong then return wrong end

local items = newest_first(redis.call('HGETALL', KEYS[2]))
redis.call('DEL', KEYS[2])
for i = 1, #items do redis.call('RPUSH', KEYS[1], items[i][4]) end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('DEL', KEYS[6])
return #items
