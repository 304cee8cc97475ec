-- Take up to n errors from the tail of the error list into a spool of this drainer.
--
-- KEYS[1]  LIST  error list  shared with legacy workers (LPUSH) and drainers (RPOP)
-- KEYS[2]  HASH  drainer     'run', 'seen', 'open' -> the batch whose spool exists
-- ARGV     run, prefix of the drainer's spools (same hash tag as the keys above), batch, n, most bytes
--          (the first item is taken at any size)
-- Returns  {code, batch, item...}: code 'OK', 'FENCED' when another process has gone on as this drainer,
--          or 'UNKNOWN' when it was given up, or Redis lost it; batch is '' where no spool is open; the
--          oldest item comes first
--
-- Safe to repeat: a drainer has one spool at a time; while one is open it is returned as it is, whatever
-- its number, and nothing is taken. With n = 0 it only looks. Types are checked before the pop, because
-- a script is not rolled back; RPOP comes before any command that Redis refuses when out of memory.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'hash')
if wrong then return wrong end
local run = redis.call('HGET', KEYS[2], 'run')
if run ~= ARGV[1] then return {run and 'FENCED' or 'UNKNOWN', ''} end

local function reply(batch, items, last)
  local answer = {'OK', batch}
  for i = 1, last do answer[i + 2] = items[i] end
  return answer
end

local open = redis.call('HGET', KEYS[2], 'open')
if open then
  wrong = expect(ARGV[2] .. open, 'list')
  if wrong then return wrong end
  local held = redis.call('LRANGE', ARGV[2] .. open, 0, -1)
  if #held > 0 then return reply(open, held, #held) end
end

local batch, n, left = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local spool = ARGV[2] .. batch
wrong = expect(spool, 'none')
if wrong then return wrong end
local items = {}
if n > 0 then items = redis.call('RPOP', KEYS[1], n) or {} end
if #items == 0 then
  redis.call('HDEL', KEYS[2], 'open')
  redis.call('HSET', KEYS[2], 'seen', string.format('%.0f', clock()))
  return {'OK', ''}
end

local taken = 0
for i = 1, #items do
  left = left - #items[i]
  if left < 0 and i > 1 then break end
  taken = i
end
for i = #items, taken + 1, -1 do redis.call('RPUSH', KEYS[1], items[i]) end
for from = 1, taken, CHUNK do
  redis.call('RPUSH', spool, unpack(items, from, math.min(from + CHUNK - 1, taken)))
end
redis.call('HSET', KEYS[2], 'open', batch, 'seen', string.format('%.0f', clock()))
return reply(batch, items, taken)
