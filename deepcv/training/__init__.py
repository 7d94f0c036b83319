"""Training: functions around ignite's Engine."""
