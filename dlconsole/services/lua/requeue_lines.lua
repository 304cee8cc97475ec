-- Make tasks again of lines of an exported file, each line once.
--
-- KEYS[1]  LIST    queue
-- KEYS[2]  STRING  failed    counter
-- KEYS[3]  STRING  fed       counter
-- KEYS[4…] SET     requeued  one a chunk of the file: the marks, 64-bit integers, of the lines that were
--                            requeued
-- ARGV     ttl of the sets in ms, then for each line: which chunk (from 1), mark, queue item
-- Returns  how many were requeued now
--
-- Tasks go to the left end of the queue, behind what waits there, as if they were fed.
--
-- Safe to repeat: a line moves only where its mark was not there. Types are checked first; the mark comes
-- before the push, and Redis refuses only a script's first write when it is out of memory.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'string') or expect(KEYS[3], 'string')
  or expect_number(KEYS[2]) or expect_number(KEYS[3])
for i = 4, #KEYS do wrong = wrong or expect(KEYS[i], 'set') end
if wrong then return wrong end

local moved = 0
for i = 2, #ARGV, 3 do
  if redis.call('SADD', KEYS[3 + tonumber(ARGV[i])], ARGV[i + 1]) == 1 then
    redis.call('LPUSH', KEYS[1], ARGV[i + 2])
    moved = moved + 1
  end
end
for i = 4, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
no_longer_failed(KEYS[2], KEYS[3], moved)
return moved
