"""Whether an account may run what a task needs, by the quotas of the cloud that it goes to.

told = ask.told(want_of(task))       -> Told(rooms, untold)
best = room.best(told.rooms)         the region nearest to what is needed
"""
