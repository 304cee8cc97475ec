-- Put a drainer's spool back to the tail of the error list, in its order, and forget the drainer.
--
-- KEYS[1]  LIST  error list
-- KEYS[2]  SET   drainers
-- KEYS[3]  HASH  drainer
-- ARGV     drainer id, prefix of its spools (same hash tag as the keys above), least silence in ms
-- Returns  {code, given back}: code 'OK', or 'BUSY' when it was seen less than that long ago
--
-- A process that still goes on as this drainer finds itself fenced: its next call changes nothing.
--
-- Safe to repeat, and for many to call at once: what went back is no longer in the spool. Types are
-- checked first; DEL comes before the push, so it runs when Redis is out of memory.

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'set') or expect(KEYS[3], 'hash')
if wrong then return wrong end

local seen = tonumber(redis.call('HGET', KEYS[3], 'seen') or '0') or 0
if clock() - seen < tonumber(ARGV[3]) then return {'BUSY', 0} end

local items = {}
local open = redis.call('HGET', KEYS[3], 'open')
if open then
  wrong = expect(ARGV[2] .. open, 'list')
  if wrong then return wrong end
  items = redis.call('LRANGE', ARGV[2] .. open, 0, -1)
  redis.call('DEL', ARGV[2] .. open)
end
for i = #items, 1, -1 do redis.call('RPUSH', KEYS[1], items[i]) end
redis.call('DEL', KEYS[3])
redis.call('SREM', KEYS[2], ARGV[1])
return {'OK', #items}
