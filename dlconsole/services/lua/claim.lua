-- Take up to n items from the tail of the queue into this session's in-flight hash.
--
-- KEYS[1]  LIST  queue      shared with legacy workers, who RPOP from it
-- KEYS[2]  ZSET  lease      session id -> deadline, ms
-- KEYS[3]  HASH  in flight  '<batch>:<i>' -> raw item; '_last' -> '<batch>' or '<batch> stop'
-- KEYS[4]  HASH  control    'paused' -> '1' while the fleet is paused
-- ARGV     sid, batch, n, ttl_ms      batch is a number that the client counts up
-- Returns  {code, stop, ...}: code is
--            'OK'      the items follow; the k-th belongs to field '<batch>:<k-1>'
--            'REPLAY'  this batch was taken before: (i, item) pairs of what is still in flight of it
--            'FENCED'  the lease is missing or past; nothing was taken
--            'PAUSED'  nothing was taken
--          stop is 1 when the batch ended at a legacy stop sentinel, which it consumed.
--
-- Safe to repeat: the same batch number returns the same items, a smaller one takes nothing, so a
-- lost reply neither strands nor doubles a task. Types are checked before the pop, because a script
-- is not rolled back: a WRONGTYPE after it would lose what was popped. RPOP comes before any command
-- that Redis refuses when out of memory, so a claim never fails half way.

local SENTINEL = 'stop_this_task'

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'zset') or expect(KEYS[3], 'hash')
  or expect(KEYS[4], 'hash')
if wrong then return wrong end

local sid, batch, n = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = clock()
if not is_live(KEYS[2], sid, now) then return {'FENCED', 0} end

-- Batches are compared as numbers but kept as the strings they came as.
local last = redis.call('HGET', KEYS[3], '_last')
if last then
  local last_batch = tonumber(string.match(last, '^%d+'))
  if tonumber(batch) < last_batch then return {'OK', 0} end
  if tonumber(batch) == last_batch then
    local reply = {'REPLAY', string.find(last, 'stop', 1, true) and 1 or 0}
    for i = 0, n - 1 do
      local item = redis.call('HGET', KEYS[3], batch .. ':' .. i)
      if item then
        reply[#reply + 1] = tostring(i)
        reply[#reply + 1] = item
      end
    end
    renew(KEYS[2], sid, now, ARGV[4])
    return reply
  end
end

if redis.call('HGET', KEYS[4], 'paused') == '1' then
  renew(KEYS[2], sid, now, ARGV[4])
  return {'PAUSED', 0}
end

-- Legacy workers stop at any item that contains the text; ours only where the item is not a task.
local function is_sentinel(item)
  if not string.find(item, SENTINEL, 1, true) then return false end
  local ok, task = pcall(cjson.decode, item)
  return not (ok and type(task) == 'table' and type(task['img_url']) == 'string')
end

local items = redis.call('RPOP', KEYS[1], n) or {}
local taken, stop = #items, 0
for i = 1, #items do
  if is_sentinel(items[i]) then
    taken, stop = i - 1, 1
    -- What lay behind the sentinel goes back, so that the next of it is at the tail again.
    for k = #items, i + 1, -1 do redis.call('RPUSH', KEYS[1], items[k]) end
    break
  end
end

local reply = {'OK', stop}
local fields = {'_last', stop == 1 and batch .. ' stop' or batch}
for i = 1, taken do
  fields[#fields + 1] = batch .. ':' .. (i - 1)
  fields[#fields + 1] = items[i]
  reply[#reply + 1] = items[i]
  if #fields >= CHUNK then
    redis.call('HSET', KEYS[3], unpack(fields))
    fields = {}
  end
end
if #fields > 0 then redis.call('HSET', KEYS[3], unpack(fields)) end
renew(KEYS[2], sid, now, ARGV[4])
return reply
