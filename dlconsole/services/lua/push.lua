-- Push a block of a list's tasks, and move the list's position, both or neither.
--
-- KEYS[1]  LIST    queue   shared with legacy feeders and workers
-- KEYS[2]  STRING  fed     counter
-- KEYS[3]  HASH    feed    list id -> position, text that only the feeder reads
-- ARGV     list id, the position that the block follows ('' for none), the position behind it, then
--          the block's items in their order; there may be none
-- Returns  {applied, position, length}: applied is 1 when this call pushed the block, else 0 and nothing
--          was changed; position is where the list stands now; length is the queue's
--
-- Safe to repeat: the block goes in only where the list stands exactly in front of it, so a second
-- call, a late one, or one of a second feeder changes nothing and is told where the list stands. In the
-- append-only file push and position are one transaction: a Redis that lost its last second lost both.
-- Types are checked first, because a script is not rolled back; LPUSH comes first, because out of
-- memory Redis refuses only a script's first write. It is one call up to 7,000 items: see docs/redis.md
-- on an append-only file that was torn in the middle of a transaction.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'string') or expect(KEYS[3], 'hash')
  or expect_number(KEYS[2])
if wrong then return wrong end

local stands = redis.call('HGET', KEYS[3], ARGV[1]) or ''
if stands ~= ARGV[2] then return {0, stands, redis.call('LLEN', KEYS[1])} end

local FIRST, MOST = 4, 7000
local length
for from = FIRST, #ARGV, MOST do
  length = redis.call('LPUSH', KEYS[1], unpack(ARGV, from, math.min(from + MOST - 1, #ARGV)))
end
if #ARGV >= FIRST then redis.call('INCRBY', KEYS[2], #ARGV - FIRST + 1) end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
return {1, ARGV[3], length or redis.call('LLEN', KEYS[1])}
