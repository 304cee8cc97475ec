-- Give some of a session's tasks back to the tail of the queue, in their order; it goes on living.
--
-- KEYS[1]  LIST  queue
-- KEYS[2]  HASH  in flight  '<batch>:<i>' -> raw item
-- ARGV     fields, in the order in which their items are to be taken again
-- Returns  how many items went back
--
-- Safe to repeat: an item moves only with its HDEL, which comes before any command that Redis refuses
-- when out of memory. The type is checked first.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'hash')
if wrong then return wrong end

local moved = 0
for i = #ARGV, 1, -1 do
  local item = redis.call('HGET', KEYS[2], ARGV[i])
  if item then
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('RPUSH', KEYS[1], item)
    moved = moved + 1
  end
end
return moved
