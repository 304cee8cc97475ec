-- Report outcomes: count each final one once, put failed tasks on the error list and those that are
-- tried again, or put off, into the delayed set.
--
-- KEYS[1]  HASH    in flight   '<batch>:<i>' -> raw item
-- KEYS[2]  STRING  stored      counter, shared with legacy workers
-- KEYS[3]  STRING  failed      counter, shared with legacy workers
-- KEYS[4]  LIST    error list  shared with legacy workers and drainers
-- KEYS[5]  ZSET    lease       session id -> deadline, ms
-- KEYS[6]  ZSET    delayed     '<id>:<raw item>' -> due, ms
-- KEYS[7]  HASH    crash       sha1 of an item -> the sessions that died holding it
-- KEYS[8]  LIST    queue       shared with legacy workers
-- ARGV     sid, ttl_ms, the delayed set's largest size, s, f, then s fields of stored tasks, then f
--          pairs (field, error item), then (field, delay in ms, item, tried) for each retry: '1', or ''
--          for a task that was not tried, only put off
-- Returns  {code, stored, failed, delayed, put back, ...}: code 'OK', or 'FENCED' when the lease is
--          missing or past; the numbers are what was counted now; the fields of retries that found the
--          delayed set full follow.
--
-- A retry that finds the delayed set full stays in flight: it fails for good, and its worker must write that
-- into its ledger before it says so in another ack. What was only put off goes back to the queue's far
-- end then, behind all others. An item that is finished, however it ended, did not kill its session: the
-- deaths of others that held it are forgotten; not of what was put off.
--
-- Safe to repeat: a task counts only where HDEL finds its field, so sending an ack twice, or after
-- the tasks went to another session, changes nothing; a retry that finds room the second time is taken then. Types are checked first, and it also runs when
-- Redis is out of memory: an ack is never half applied.

local wrong = expect(KEYS[1], 'hash') or expect(KEYS[2], 'string') or expect(KEYS[3], 'string')
  or expect(KEYS[4], 'list') or expect(KEYS[5], 'zset') or expect(KEYS[6], 'zset')
  or expect(KEYS[7], 'hash') or expect(KEYS[8], 'list')
  or expect_number(KEYS[2]) or expect_number(KEYS[3])
if wrong then return wrong end

local sid, max_delayed = ARGV[1], tonumber(ARGV[3])
local first_failed = 6 + tonumber(ARGV[4])
local first_retry = first_failed + 2 * tonumber(ARGV[5])
local now = clock()
allow_without_memory(KEYS[5])

local has_deaths = redis.call('EXISTS', KEYS[7]) == 1
local function forget_deaths(field)
  local item = has_deaths and redis.call('HGET', KEYS[1], field)
  if item then redis.call('HDEL', KEYS[7], redis.sha1hex(item)) end
end

local stored, failed, delayed, put_back = 0, 0, 0, 0
local refused = {}
for from = 6, first_failed - 1, CHUNK do
  local to = math.min(from + CHUNK - 1, first_failed - 1)
  if has_deaths then
    for i = from, to do forget_deaths(ARGV[i]) end
  end
  stored = stored + redis.call('HDEL', KEYS[1], unpack(ARGV, from, to))
end
for i = first_failed, first_retry - 1, 2 do
  forget_deaths(ARGV[i])
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('LPUSH', KEYS[4], ARGV[i + 1])
    failed = failed + 1
  end
end
-- Into the delayed set with it, or to the queue's far end; what was acked before is not there any more.
local function put_away(field, delay_ms, item, has_room)
  if redis.call('HDEL', KEYS[1], field) == 0 then return end
  if has_room then
    -- The id keeps two equal items apart; it has no colon but the one behind it.
    local id = sid .. '/' .. string.gsub(field, ':', '.')
    redis.call('ZADD', KEYS[6], string.format('%.0f', now + delay_ms), id .. ':' .. item)
    delayed = delayed + 1
  else
    redis.call('LPUSH', KEYS[8], item)
    put_back = put_back + 1
  end
end

for i = first_retry, #ARGV, 4 do
  local field, was_tried = ARGV[i], ARGV[i + 3] ~= ''
  local has_room = redis.call('ZCARD', KEYS[6]) < max_delayed
  if has_room or not was_tried then
    if was_tried then forget_deaths(field) end
    put_away(field, ARGV[i + 1], ARGV[i + 2], has_room)
  elseif redis.call('HEXISTS', KEYS[1], field) == 1 then
    refused[#refused + 1] = field
  end
end
if stored > 0 then redis.call('INCRBY', KEYS[2], stored) end
if failed > 0 then redis.call('INCRBY', KEYS[3], failed) end

local live = is_live(KEYS[5], sid, now)
if live then renew(KEYS[5], sid, now, ARGV[2]) end
local reply = {live and 'OK' or 'FENCED', stored, failed, delayed, put_back}
for i = 1, #refused do reply[#reply + 1] = refused[i] end
return reply
