-- Take up to n items from the tail of the queue into this session's in-flight hash.
--
-- KEYS[1]  LIST  queue      shared with legacy workers, who RPOP from it
-- KEYS[2]  ZSET  lease      session id -> deadline, ms
-- KEYS[3]  HASH  in flight  '<batch>:<i>' -> raw item; '_last' -> '<batch>' and its flag
-- KEYS[4]  HASH  control    'paused' -> '1' while the fleet is paused
-- KEYS[5]  HASH  crash      sha1 of an item -> the sessions that died holding it
-- ARGV     sid, batch, n, ttl_ms, max deaths      batch is a number that the client counts up
-- Returns  {code, flag, ...}: code is
--            'OK'      the items follow; the k-th belongs to field '<batch>:<k-1>'
--            'REPLAY'  this batch was taken before: (i, item) pairs of what is still in flight of it
--            'FENCED'  the lease is missing or past; nothing was taken
--            'PAUSED'  nothing was taken
--          flag is 'stop' when the batch ended at a legacy stop sentinel, which it consumed; 'crashed'
--          when it is one item that `max deaths` sessions died holding: it is to be ended as that, and
--          not to be worked on; 'solo' when one less did: it is to be worked on alone, so that the next
--          death tells the poison from what was merely near it; else ''.
--
-- Safe to repeat: the same batch number returns the same items, a smaller one takes nothing, so a
-- lost reply neither strands nor doubles a task. Types are checked before the pop, because a script
-- is not rolled back: a WRONGTYPE after it would lose what was popped. It also runs when Redis is out of
-- memory, and never fails half way: what is claimed is what is then acked, and frees some.

local SENTINEL = 'stop_this_task'

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'zset') or expect(KEYS[3], 'hash')
  or expect(KEYS[4], 'hash') or expect(KEYS[5], 'hash')
if wrong then return wrong end

local sid, batch, n = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = clock()
if not is_live(KEYS[2], sid, now) then return {'FENCED', ''} end
allow_without_memory(KEYS[2])

-- Batches are compared as numbers but kept as the strings they came as.
local last = redis.call('HGET', KEYS[3], '_last')
if last then
  local last_batch = tonumber(string.match(last, '^%d+'))
  if tonumber(batch) < last_batch then return {'OK', ''} end
  if tonumber(batch) == last_batch then
    local reply = {'REPLAY', string.match(last, '%a+$') or ''}
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
  return {'PAUSED', ''}
end

-- Legacy workers stop at any item that contains the text; ours only where the item is not a task.
local function is_sentinel(item)
  if not string.find(item, SENTINEL, 1, true) then return false end
  local ok, task = read_item(item)
  -- What cjson cannot read (nested too deeply) is left to the worker if it looks like an object.
  if not ok then return string.sub(item, 1, 1) ~= '{' end
  return type(task) ~= 'table' or type(task['img_url']) ~= 'string'
end

local has_suspects = redis.call('EXISTS', KEYS[5]) == 1
local max_deaths = tonumber(ARGV[5])
local function suspicion(item)
  if not has_suspects then return '' end
  local deaths = #deaths_of(KEYS[5], redis.sha1hex(item))
  return deaths >= max_deaths and 'crashed' or deaths == max_deaths - 1 and 'solo' or ''
end

-- What lies behind the end of the batch goes back, so that the next of it is at the tail again.
local items = redis.call('RPOP', KEYS[1], n) or {}
local function put_back(first)
  for k = #items, first, -1 do redis.call('RPUSH', KEYS[1], items[k]) end
end

local taken, flag = #items, ''
for i = 1, #items do
  if is_sentinel(items[i]) then
    taken, flag = i - 1, 'stop'
    put_back(i + 1)
    break
  end
  local suspected = suspicion(items[i])
  if suspected ~= '' then
    taken, flag = math.max(i - 1, 1), i == 1 and suspected or ''
    put_back(taken + 1)
    break
  end
end

local reply = {'OK', flag}
local fields = {'_last', flag == '' and batch or batch .. ' ' .. flag}
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
