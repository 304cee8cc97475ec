-- A session that was taken for dead is alive (suspended, or cut off, for longer than its lease): its
-- death counts for nothing.
--
-- KEYS[1]  HASH  crash  sha1 of an item -> the sessions that died holding it
-- ARGV     sid, then the sha1 of each item that it held
-- Returns  how many items it was taken off
--
-- Safe to repeat: a name that is gone is not taken off again. The type is checked first; HDEL of nothing
-- comes first, because Redis refuses only a script's first write when it is out of memory.

local wrong = expect(KEYS[1], 'hash')
if wrong then return wrong end

redis.call('HDEL', KEYS[1], '')
local forgiven = 0
for i = 2, #ARGV do
  local deaths = deaths_of(KEYS[1], ARGV[i])
  local at = position(deaths, ARGV[1])
  if at then
    table.remove(deaths, at)
    if #deaths == 0 then
      redis.call('HDEL', KEYS[1], ARGV[i])
    else
      redis.call('HSET', KEYS[1], ARGV[i], table.concat(deaths, ' '))
    end
    forgiven = forgiven + 1
  end
end
return forgiven
