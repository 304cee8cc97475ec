-- What the other scripts begin with; joined in front of each when it is loaded.

local CHUNK = 1000  -- arguments a call: unpack has a limit of about 8,000

-- An error where `key` exists with another type. To be asked before anything is changed: a script is
-- not rolled back.
local function expect(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. wanted)
  end
end

-- The server's clock in ms: the only one that leases and delays are measured by.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_live(lease, sid, now)
  local deadline = redis.call('ZSCORE', lease, sid)
  return deadline and tonumber(deadline) > now
end

-- Numbers go as text with all their digits: Lua's own formatting collapses long ones.
local function renew(lease, sid, now, ttl_ms)
  redis.call('ZADD', lease, string.format('%.0f', now + ttl_ms), sid)
end
