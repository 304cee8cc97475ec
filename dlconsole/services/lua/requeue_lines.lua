-- Make tasks again of lines of an exported file, each line once.
--
-- KEYS[1]  LIST    queue
-- KEYS[2]  STRING  failed    counter
-- KEYS[3]  STRING  fed       counter
-- KEYS[4]  STRING  requeued  bitmap: bit i is set when line i of the file was requeued
-- ARGV     ttl of the bitmap in ms, then a pair (line number from 0, queue item) for each line
-- Returns  how many were requeued now
--
-- Tasks go to the left end of the queue, behind what waits there, as if they were fed.
--
-- Safe to repeat: a line moves only where its bit was not set. Types are checked first; the bit comes
-- before the push, and Redis refuses only a script's first write when it is out of memory.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'string') or expect(KEYS[3], 'string')
  or expect_number(KEYS[2]) or expect_number(KEYS[3]) or expect(KEYS[4], 'string')
if wrong then return wrong end

local moved = 0
for i = 2, #ARGV, 2 do
  if redis.call('SETBIT', KEYS[4], ARGV[i], 1) == 0 then
    redis.call('LPUSH', KEYS[1], ARGV[i + 1])
    moved = moved + 1
  end
end
redis.call('PEXPIRE', KEYS[4], ARGV[1])
no_longer_failed(KEYS[2], KEYS[3], moved)
return moved
