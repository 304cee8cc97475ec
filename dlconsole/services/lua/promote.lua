-- Move due retries to the tail of the queue: they waited already, LPUSH would put them behind millions.
--
-- KEYS[1]  LIST  queue
-- KEYS[2]  ZSET  delayed   '<id>:<raw item>' -> due, ms
-- ARGV     n, the most to move
-- Returns  {moved, more}: more is 1 where another call has work to do
--
-- Safe to repeat, and for many to call at once: what moved is no longer in the set. Types are checked
-- first; ZREM comes before the push.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'zset')
if wrong then return wrong end

local n = tonumber(ARGV[1])
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', clock(), 'LIMIT', 0, n)
for i = #due, 1, -1 do
  redis.call('ZREM', KEYS[2], due[i])
  redis.call('RPUSH', KEYS[1], string.sub(due[i], (string.find(due[i], ':', 1, true) or 0) + 1))
end
return {#due, #due == n and 1 or 0}
