-- Tell the fleet of hosts that asked to be left alone or that answered again, and learn of all that are
-- parked or have only refused of late.
--
-- KEYS[1]  ZSET  parked   host of a URL -> until when nothing is asked of it, ms
-- KEYS[2]  ZSET  refused  host of a URL -> how often in a row the fleet was refused there, each time behind
--                         a pause
-- ARGV     the most hosts that are kept, the longest that any may stay parked in ms, how long refusals are
--          remembered after the last one in ms, then what happened in its order: (host, ms from now) for a
--          host to be parked, (host, 0) for one that gave another answer
-- Returns  host, ms that are left, refusals, host, ms that are left, refusals, …
--
-- What has run out goes, and so do names that are longer than a host's can be; of too many, those that
-- end first, and those with the fewest refusals; what ends too late is brought forward. So the keys are
-- bounded whoever wrote them; the first expires with its last entry.
--
-- Safe to repeat: a host's end only moves later, and a caller that repeats says what is left by then,
-- which is the same end. A refusal counts where the host is not parked, so of many workers that try at a
-- pause's end, and of a call sent twice, it counts once. The types are checked first; the removal comes
-- before any command that Redis refuses when out of memory.

local MAX_NAME, MAX_REFUSALS = 255, 1000

local wrong = expect(KEYS[1], 'zset') or expect(KEYS[2], 'zset')
if wrong then return wrong end

local most, longest = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = clock()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 4, #ARGV, 2 do
  local host, left = ARGV[i], math.min(tonumber(ARGV[i + 1]), longest)
  if #host <= MAX_NAME then
    if left == 0 then
      redis.call('ZREM', KEYS[2], host)
    else
      if not redis.call('ZSCORE', KEYS[1], host) then
        redis.call('ZINCRBY', KEYS[2], 1, host)
        redis.call('PEXPIRE', KEYS[2], ARGV[3])
      end
      redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now + left), host)
    end
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -most - 1)
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -most - 1)

local refused, refusals = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES'), {}
for i = 1, #refused, 2 do
  if #refused[i] > MAX_NAME then
    redis.call('ZREM', KEYS[2], refused[i])
  else
    refusals[refused[i]] = math.max(0, math.min(tonumber(refused[i + 1]), MAX_REFUSALS))
  end
end

local reply = {}
local function tell(host, left, count)
  reply[#reply + 1] = host
  reply[#reply + 1] = string.format('%.0f', left)
  reply[#reply + 1] = string.format('%.0f', count)
end

local last = now
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
    tell(parked[i], left, refusals[parked[i]] or 0)
    refusals[parked[i]] = nil
    last = math.max(last, now + left)
  end
end
if #reply > 0 then redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last)) end
for i = 1, #refused, 2 do
  if refusals[refused[i]] then tell(refused[i], 0, refusals[refused[i]]) end
end
return reply
