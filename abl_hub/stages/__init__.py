"""The whole flow: extract → apply → evaluate → card → push, one file a stage; `convert` is all.

The stages talk through the output folder: a stage reads what the one before wrote, so each can be
run alone and a broken run goes on where it stopped.
"""
