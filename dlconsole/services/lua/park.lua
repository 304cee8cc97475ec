-- Tell the fleet of hosts that asked to be left alone, and learn of all that are parked.
--
-- KEYS[1]  ZSET  parked   host of a URL -> until when nothing is asked of it, ms
-- ARGV     the most hosts that are kept, the longest that any may stay parked in ms, then (host, ms
--          from now) for each host to be parked
-- Returns  host, ms that are left, host, ms that are left, …
--
-- What has run out goes, and so do names that are longer than a host's can be; of too many, those that
-- end first; what ends too late is brought forward. So the key is bounded whoever wrote it, and it
-- expires with its last entry.
--
-- Safe to repeat: a host's end only moves later, and a caller that repeats says what is left by then,
-- which is the same end. The type is checked first; the removal comes before any command that Redis
-- refuses when out of memory.

local MAX_NAME = 255

local wrong = expect(KEYS[1], 'zset')
if wrong then return wrong end

local most, longest = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = clock()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 3, #ARGV, 2 do
  local ends = string.format('%.0f', now + math.min(tonumber(ARGV[i + 1]), longest))
  redis.call('ZADD', KEYS[1], 'GT', ends, ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -most - 1)

local reply, last = {}, now
local parked = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #parked, 2 do
  local left = tonumber(parked[i + 1]) - now
  if #parked[i] > MAX_NAME then
    redis.call('ZREM', KEYS[1], parked[i])
  else
    if left > longest then
      left = longest
      redis.call('ZADD', KEYS[1], string.format('%.0f', now + longest), parked[i])
    end
    reply[#reply + 1] = parked[i]
    reply[#reply + 1] = string.format('%.0f', left)
    last = math.max(last, now + left)
  end
end
if #reply > 0 then redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last)) end
return reply
