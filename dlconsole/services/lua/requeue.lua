-- Decide on a spool of errors: the chosen ones are tasks again, the others go back to the error list.
--
-- KEYS[1]  LIST    queue
-- KEYS[2]  LIST    error list
-- KEYS[3]  STRING  failed   counter
-- KEYS[4]  STRING  fed      counter
-- KEYS[5]  HASH    drainer  'run', 'open'; 'last' -> the batch decided last, 'moved' -> how many it moved
-- KEYS[6]  LIST    spool    oldest first
-- ARGV     run, batch, then a pair (index in the spool from 1, queue item) for each chosen error
-- Returns  {code, requeued}: code 'OK', or 'FENCED' when the spool was given back meanwhile
--
-- Tasks go to the left end of the queue, behind what waits there, as if they were fed. Errors that stay
-- go to the left end of the list in their order: who takes from the right meets each of them once.
--
-- Safe to repeat: a batch that was decided is answered with what it moved then. Types are checked first;
-- DEL comes first, because Redis refuses only a script's first write when it is out of memory.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'list') or expect(KEYS[3], 'string')
  or expect(KEYS[4], 'string') or expect_number(KEYS[3]) or expect_number(KEYS[4])
  or expect(KEYS[5], 'hash') or expect(KEYS[6], 'list')
if wrong then return wrong end
if redis.call('HGET', KEYS[5], 'run') ~= ARGV[1] then return {'FENCED', 0} end
if redis.call('HGET', KEYS[5], 'last') == ARGV[2] then
  return {'OK', tonumber(redis.call('HGET', KEYS[5], 'moved'))}
end
local items = redis.call('LRANGE', KEYS[6], 0, -1)
if #items == 0 then return {'FENCED', 0} end

redis.call('DEL', KEYS[6])
local chosen, moved = {}, 0
for i = 3, #ARGV, 2 do chosen[tonumber(ARGV[i])] = ARGV[i + 1] end
for i = 1, #items do
  if chosen[i] then
    redis.call('LPUSH', KEYS[1], chosen[i])
    moved = moved + 1
  else
    redis.call('LPUSH', KEYS[2], items[i])
  end
end
no_longer_failed(KEYS[3], KEYS[4], moved)
redis.call('HDEL', KEYS[5], 'open')
redis.call('HSET', KEYS[5], 'last', ARGV[2], 'moved', moved, 'seen', string.format('%.0f', clock()))
return {'OK', moved}
