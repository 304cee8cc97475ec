-- Report final outcomes: count each task once, and put failed ones on the error list.
--
-- KEYS[1]  HASH    in flight   '<batch>:<i>' -> raw item
-- KEYS[2]  STRING  stored      counter, shared with legacy workers
-- KEYS[3]  STRING  failed      counter, shared with legacy workers
-- KEYS[4]  LIST    error list  shared with legacy workers and drainers
-- KEYS[5]  ZSET    lease       session id -> deadline, ms
-- ARGV     sid, ttl_ms, s, then s fields of stored tasks, then (field, error item) pairs
-- Returns  {code, stored, failed}: code 'OK', or 'FENCED' when the lease is missing or past; the
--          numbers are what was counted now.
--
-- Safe to repeat: a task counts only where HDEL finds its field, so sending an ack twice, or after
-- the tasks went to another session, changes nothing. Types are checked first, and HDEL comes before
-- any command that Redis refuses when out of memory: an ack is never half applied.

local function expect_number(key)
  local value = redis.call('GET', key)
  if value and not string.match(value, '^-?%d+$') then
    return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a number')
  end
end

local wrong = expect(KEYS[1], 'hash') or expect(KEYS[2], 'string') or expect(KEYS[3], 'string')
  or expect(KEYS[4], 'list') or expect(KEYS[5], 'zset') or expect_number(KEYS[2]) or expect_number(KEYS[3])
if wrong then return wrong end

local sid, stored_count = ARGV[1], tonumber(ARGV[3])
local first_failed = 4 + stored_count

local stored, failed = 0, 0
for from = 4, first_failed - 1, CHUNK do
  local to = math.min(from + CHUNK - 1, first_failed - 1)
  stored = stored + redis.call('HDEL', KEYS[1], unpack(ARGV, from, to))
end
for i = first_failed, #ARGV, 2 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('LPUSH', KEYS[4], ARGV[i + 1])
    failed = failed + 1
  end
end
if stored > 0 then redis.call('INCRBY', KEYS[2], stored) end
if failed > 0 then redis.call('INCRBY', KEYS[3], failed) end

local now = clock()
if not is_live(KEYS[5], sid, now) then return {'FENCED', stored, failed} end
renew(KEYS[5], sid, now, ARGV[2])
return {'OK', stored, failed}
