-- Give the tasks of one dead session back, in steps, so that Redis is never held up for long.
--
-- KEYS[1]  LIST    queue
-- KEYS[2]  ZSET    lease       session id -> deadline, ms
-- KEYS[3]  SET     sessions    every session that may own an in-flight hash
-- KEYS[4]  HASH    workers     session id -> statistics
-- KEYS[5]  HASH    crash       sha1 of an item -> the sessions that died holding it
-- ARGV     in-flight prefix (its hashes share the slot of the keys above), step, max deaths,
--          crash memory in ms
-- Returns  {session id or '', given back, more}: more is 1 where another call has work to do
--
-- A session is dead when its lease has run out, or when it is registered but has no lease at all (a
-- Redis that lost its last second can leave that); of these a few are looked at in each call. Its
-- lease goes first, so from here on its claims and renewals are refused; its acks find no field.
-- Items go back behind those that are next: the first claimed is the next to be taken again. That is so
-- of every item: one with `max deaths` is ended by the worker that claims it next, for an outcome is written
-- into a ledger first, which is on that worker's disk. It does not work on such an item, so no further death
-- is remembered of it.
--
-- Safe to repeat, and safe for many to call at once: an item moves only with its HDEL. Types are
-- checked first; ZREM comes before any command that Redis refuses when out of memory.

local SAMPLE = 16

local wrong = expect(KEYS[1], 'list') or expect(KEYS[2], 'zset') or expect(KEYS[3], 'set')
  or expect(KEYS[5], 'hash')
if wrong then return wrong end

local now = clock()
local step, max_deaths = tonumber(ARGV[2]), tonumber(ARGV[3])

local function find_dead()
  local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1)[1]
  if expired then return expired end
  for _, sid in ipairs(redis.call('SRANDMEMBER', KEYS[3], SAMPLE)) do
    if not redis.call('ZSCORE', KEYS[2], sid) then return sid end
  end
end

local sid = find_dead()
if not sid then return {'', 0, 0} end
local held_key = ARGV[1] .. sid
redis.call('ZREM', KEYS[2], sid)
redis.call('HDEL', KEYS[4], sid)
if expect(held_key, 'hash') then  -- somebody else's: it stays as it is, and is not looked at again
  redis.call('SREM', KEYS[3], sid)
  return {sid, 0, 1}
end
-- Registered for as long as it owns anything, so that the next call finds it again.
redis.call('SADD', KEYS[3], sid)

local items = newest_first(redis.call('HGETALL', held_key))
local given_back = math.min(step, #items)
for i = 1, given_back do
  local field, item = items[i][3], items[i][4]
  redis.call('HDEL', held_key, field)
  local digest = redis.sha1hex(item)
  local deaths = deaths_of(KEYS[5], digest)
  if #deaths < max_deaths and not position(deaths, sid) then
    deaths[#deaths + 1] = sid
    redis.call('HSET', KEYS[5], digest, table.concat(deaths, ' '))
  end
  redis.call('RPUSH', KEYS[1], item)
end
if given_back > 0 then redis.call('PEXPIRE', KEYS[5], ARGV[4]) end
if #items <= step then
  redis.call('DEL', held_key)
  redis.call('SREM', KEYS[3], sid)
end
return {sid, given_back, 1}
